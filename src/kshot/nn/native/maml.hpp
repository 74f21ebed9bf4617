// ---------------- second-order MAML, one task per thread ----------------
// flat parameter vector: w0[9][64] | w1..w3 [9][in][out] | gamma[4][64] | beta[4][64] | head[way][64] | bias[way]
template<class T> void wxf2(const T*w,T*U,T*Ut){ typedef V_(T) v; constexpr int L=VT<T>::L; const long S=C*C;
  for(long k=0;k<S;k+=L){ v t[4][3]; for(int b=0;b<3;b++){ v x=LD(T,w+b*S+k),y=LD(T,w+(3+b)*S+k),z=LD(T,w+(6+b)*S+k); t[0][b]=x; t[1][b]=(x+y+z)*T(.5); t[2][b]=(x-y+z)*T(.5); t[3][b]=z; }
    for(int a=0;a<4;a++){ v x=t[a][0],y=t[a][1],z=t[a][2]; T*u=U+a*4*S+k; ST(T,u)=x; ST(T,u+S)=(x+y+z)*T(.5); ST(T,u+2*S)=(x-y+z)*T(.5); ST(T,u+3*S)=z; } }
  if(Ut) for(int f=0;f<16;f++) for(int i0=0;i0<C;i0+=16) for(int o0=0;o0<C;o0+=16) for(int o=o0;o<o0+16;o++) for(int i=i0;i<i0+16;i++) Ut[f*S+o*C+i]=U[f*S+i*C+o];
}
template<class T> void wxf2_adj(const T*U,T*w){ typedef V_(T) v; constexpr int L=VT<T>::L; const long S=C*C;
  for(long k=0;k<S;k+=L){ v t[3][4]; for(int b=0;b<4;b++){ v u0=LD(T,U+b*S+k),u1=LD(T,U+(4+b)*S+k),u2=LD(T,U+(8+b)*S+k),u3=LD(T,U+(12+b)*S+k);
      t[0][b]=u0+(u1+u2)*T(.5); t[1][b]=(u1-u2)*T(.5); t[2][b]=(u1+u2)*T(.5)+u3; }
    for(int a=0;a<3;a++){ T*o=w+a*3*S+k; ST(T,o)=t[a][0]+(t[a][1]+t[a][2])*T(.5); ST(T,o+S)=(t[a][1]-t[a][2])*T(.5); ST(T,o+2*S)=(t[a][1]+t[a][2])*T(.5)+t[a][3]; } }
}
template<class T> struct Net { const T*th; Buf<T> U[4],Ut[4]; 
  const T*w(int l)const{return th+(l?576+(l-1)*36864:0);} const T*ga(int l)const{return th+111168+l*C;} const T*be(int l)const{return th+111424+l*C;} const T*wh()const{return th+111680;}
  void set(const T*t){ th=t; for(int l=1;l<4;l++) wxf2(w(l),U[l].get(16*C*C),Ut[l].get(16*C*C)); } };
template<class T> struct Acts { Buf<T> y[4],pm[4],out[4],dout[4]; Buf<uint8_t> idx[4]; T mu[4][C],r[4][C],s1[4][C],s2[4][C]; std::vector<T> p,dz; };
template<class T> struct Scr { Ws<T> ws; Buf<T> y0,g,g2,P,P2,pmd,dU,yd[4],od[4],pd[4],dd,dd2; T mud[4][C],k[4][C]; };
// forward + backward of cross-entropy; grad flat (overwritten; may be null = forward only). returns loss
template<class T> T fwdbwd(const Net<T>&N,const T*x,const int*lab,int n,int way,Acts<T>&A,T*grad,Scr<T>&S){
  for(int l=0;l<4;l++){ int H=HS[l],h=HS[l+1]; long ys=(long)H*H*C,ps=(long)h*h*C; T*pm=A.pm[l].get(n*ps),*o=A.out[l].get(n*ps); uint8_t*id=A.idx[l].get(n*ps); T*y=l?A.y[l].get(n*ys):S.y0.get(ys);
    double s[2*C]={}; T sh[C]={}; if(l==0) for(int c=0;c<C;c++) for(int k=0;k<9;k++) sh[c]+=N.w(0)[k*C+c]*x[(5+k/3)*28+5+k%3];
    int nb=l?nblk(H,H):1;
    for(int i=0;i<n;i+=nb){ int m=std::min(nb,n-i); T*yb=l?y+i*ys:y; if(l==0) l1fwd(x+(long)i*784,N.w(0),28,28,yb); else cfwd<T>(A.out[l-1].p+i*ys,N.U[l].p,nullptr,nullptr,m,H,H,yb,S.ws);
      statpool(yb,m,H,H,sh,N.ga(l),s,pm+i*ps,id+i*ps); }
    finstat(s,sh,(long)n*H*H,A.mu[l],A.r[l]); const T*ga=N.ga(l),*be=N.be(l);
    for(long p=0;p<n*ps;p+=C) for(int c=0;c<C;c++){ T z=ga[c]*A.r[l][c]*(pm[p+c]-A.mu[l][c])+be[c]; o[p+c]=z>0?z:T(0); } }
  const T*f=A.out[3].p,*wh=N.wh(),*bh=wh+way*C; A.p.resize(n*way); A.dz.resize(n*way); double loss=0;
  for(int i=0;i<n;i++){ T*p=&A.p[i*way]; T mx=-1e30; for(int j=0;j<way;j++){ T z=bh[j]; for(int c=0;c<C;c++) z+=f[i*C+c]*wh[j*C+c]; p[j]=z; mx=std::max(mx,z); }
    T su=0; for(int j=0;j<way;j++) su+=std::exp(p[j]-mx); loss+=std::log(su)+mx-p[lab[i]]; for(int j=0;j<way;j++){ p[j]=std::exp(p[j]-mx)/su; A.dz[i*way+j]=(p[j]-(j==lab[i]))/n; } }
  if(!grad) return T(loss/n);
  T*gw=grad+111680; for(int j=0;j<way*C+way;j++) gw[j]=0; T*df=A.dout[3].get(n*C); memset(df,0,sizeof(T)*n*C);
  for(int i=0;i<n;i++) for(int j=0;j<way;j++){ T d=A.dz[i*way+j]; gw[way*C+j]+=d; for(int c=0;c<C;c++){ gw[j*C+c]+=d*f[i*C+c]; df[i*C+c]+=d*wh[j*C+c]; } }
  for(int l=3;l>=0;l--){ int H=HS[l],h=HS[l+1]; long ys=(long)H*H*C,ps=(long)h*h*C; const T*d=A.dout[l].p,*o=A.out[l].p,*pm=A.pm[l].p,*mu=A.mu[l],*r=A.r[l],*ga=N.ga(l); T*P=S.P.get(n*ps);
    double s1[C]={},s2[C]={}; 
    for(int i=0;i<n;i++){ T a1[C]={},a2[C]={}; for(long p=i*ps;p<(i+1)*ps;p+=C) for(int c=0;c<C;c++){ T z=o[p+c]>0?d[p+c]:T(0); a1[c]+=z; a2[c]+=z*(pm[p+c]-mu[c])*r[c]; P[p+c]=z*ga[c]*r[c]; } for(int c=0;c<C;c++){ s1[c]+=a1[c]; s2[c]+=a2[c]; } }
    double M=(double)n*H*H; T cA[C],cB[C]; for(int c=0;c<C;c++){ grad[111168+l*C+c]=T(s2[c]); grad[111424+l*C+c]=T(s1[c]); A.s1[l][c]=T(s1[c]/M); A.s2[l][c]=T(s2[c]/M); T a=ga[c]*r[c]; cA[c]=-a*r[c]*A.s2[l][c]; cB[c]=-a*A.s1[l][c]+a*r[c]*mu[c]*A.s2[l][c]; }
    int nb=l?nblk(H,H):1; T*g=S.g.get(nb*ys); T*du=S.dU.get(16*C*C); memset(du,0,sizeof(T)*(l?16*C*C:9*C)); T*dx=l?A.dout[l-1].get(n*ys):nullptr;
    for(int i=0;i<n;i+=nb){ int m=std::min(nb,n-i); T*yb; if(l==0){ yb=S.y0.get(ys); l1fwd(x+(long)i*784,N.w(0),28,28,yb);} else yb=A.y[l].p+i*ys;
      dense<T>(yb,nullptr,m,H,H,cA,nullptr,cB,P+i*ps,A.idx[l].p+i*ps,g);
      if(l==0) l1bwd(x+(long)i*784,g,28,28,du); else cbwd<T>(A.out[l-1].p+i*ys,g,N.Ut[l].p,nullptr,nullptr,nullptr,m,H,H,du,dx+i*ys,S.ws); }
    T*gl=grad+(l?576+(l-1)*36864:0); if(l) wxf2_adj(du,gl); else memcpy(gl,du,sizeof(T)*576); }
  return T(loss/n);
}
// Hessian-vector product: hv = H(loss at N,x) * v, using the activations and gradients kept in A
template<class T> void hvp(const Net<T>&N,const Net<T>&D,const T*x,int n,int way,Acts<T>&A,T*hv,Scr<T>&S){
  for(int l=0;l<4;l++){ int H=HS[l],h=HS[l+1]; long ys=(long)H*H*C,ps=(long)h*h*C; const T*mu=A.mu[l],*r=A.r[l]; const uint8_t*id=A.idx[l].p; T*pd=S.pd[l].get(n*ps),*od=S.od[l].get(n*ps); double a[C]={},k[C]={}; int nb=l?nblk(H,H):1;
    T*yd0=l?S.yd[l].get(n*ys):S.g.get(ys);
    for(int i=0;i<n;i+=nb){ int m=std::min(nb,n-i); T*yb,*yd; if(l==0){ yb=S.y0.get(ys); yd=yd0; l1fwd(x+(long)i*784,N.w(0),28,28,yb); l1fwd(x+(long)i*784,D.w(0),28,28,yd);} 
      else { yb=A.y[l].p+i*ys; yd=yd0+i*ys; cfwd<T>(S.od[l-1].p+i*ys,N.U[l].p,A.out[l-1].p+i*ys,D.U[l].p,m,H,H,yd,S.ws); }
      for(int b=0;b<m;b++){ T a1[C]={},k1[C]={}; const T*yy=yb+b*ys,*yt=yd+b*ys; for(long p=0;p<ys;p+=C) for(int c=0;c<C;c++){ a1[c]+=yt[p+c]; k1[c]+=yt[p+c]*(yy[p+c]-mu[c]); } for(int c=0;c<C;c++){ a[c]+=a1[c]; k[c]+=k1[c]; }
        for(int u=0;u<h;u++) for(int v=0;v<h;v++){ long q=(i+b)*ps+((long)u*h+v)*C; const T*t=yt+((long)2*u*H+2*v)*C; const uint8_t*ii=id+q; for(int c=0;c<C;c++){ T t0=t[c],t1=t[C+c],t2=t[(long)H*C+c],t3=t[(long)H*C+C+c]; int e=ii[c]; T lo=(e&1)?t1:t0,hi=(e&1)?t3:t2; pd[q+c]=(e&2)?hi:lo; } } } }
    double M=(double)n*H*H; T*mud=S.mud[l],*kk=S.k[l]; for(int c=0;c<C;c++){ mud[c]=T(a[c]/M); kk[c]=T(k[c]/M*r[c]); }
    const T*o=A.out[l].p,*pm=A.pm[l].p,*ga=N.ga(l),*gd=D.ga(l),*bd=D.be(l);
    for(long p=0;p<n*ps;p+=C) for(int c=0;c<C;c++){ T xh=r[c]*(pm[p+c]-mu[c]),xd=r[c]*(pd[p+c]-mud[c])-xh*r[c]*kk[c]; pd[p+c]=xd; T z=gd[c]*xh+ga[c]*xd+bd[c]; od[p+c]=o[p+c]>0?z:T(0); } }
  const T*f=A.out[3].p,*fd=S.od[3].p,*wh=N.wh(),*wd=D.wh(),*bd=wd+way*C; T*gw=hv+111680; for(int j=0;j<way*C+way;j++) gw[j]=0; T*dd=S.dd.get((long)n*196*C),*dn=S.dd2.get((long)n*196*C); memset(dd,0,sizeof(T)*n*C);
  std::vector<T> zd(way);
  for(int i=0;i<n;i++){ T su=0; for(int j=0;j<way;j++){ T z=bd[j]; for(int c=0;c<C;c++) z+=fd[i*C+c]*wh[j*C+c]+f[i*C+c]*wd[j*C+c]; zd[j]=z; su+=A.p[i*way+j]*z; }
    for(int j=0;j<way;j++){ T q=A.p[i*way+j]*(zd[j]-su)/n,d=A.dz[i*way+j]; gw[way*C+j]+=q; for(int c=0;c<C;c++){ gw[j*C+c]+=q*f[i*C+c]+d*fd[i*C+c]; dd[i*C+c]+=q*wh[j*C+c]+d*wd[j*C+c]; } } }
  for(int l=3;l>=0;l--){ int H=HS[l],h=HS[l+1]; long ys=(long)H*H*C,ps=(long)h*h*C; const T*d=A.dout[l].p,*o=A.out[l].p,*pm=A.pm[l].p,*xd=S.pd[l].p,*mu=A.mu[l],*r=A.r[l],*ga=N.ga(l),*gd=D.ga(l),*kk=S.k[l],*mud=S.mud[l]; T*P=S.P.get(n*ps),*P2=S.P2.get(n*ps);
    double s1[C]={},s2[C]={}; T e[C]; for(int c=0;c<C;c++) e[c]=gd[c]*r[c]-ga[c]*r[c]*r[c]*kk[c];
    for(int i=0;i<n;i++){ T a1[C]={},a2[C]={}; for(long p=i*ps;p<(i+1)*ps;p+=C) for(int c=0;c<C;c++){ bool on=o[p+c]>0; T z=on?d[p+c]:T(0),zt=on?dd[p+c]:T(0); a1[c]+=zt; a2[c]+=zt*(pm[p+c]-mu[c])*r[c]+z*xd[p+c]; P[p+c]=z*ga[c]*r[c]; P2[p+c]=e[c]*z+ga[c]*r[c]*zt; } for(int c=0;c<C;c++){ s1[c]+=a1[c]; s2[c]+=a2[c]; } }
    double M=(double)n*H*H; T cA[C],cB[C],dA[C],dA2[C],dB[C];
    for(int c=0;c<C;c++){ hv[111168+l*C+c]=T(s2[c]); hv[111424+l*C+c]=T(s1[c]); T t1=T(s1[c]/M),t2=T(s2[c]/M),S1=A.s1[l][c],S2=A.s2[l][c],R=r[c],a=ga[c]*R,k=kk[c];
      cA[c]=-a*R*S2; cB[c]=-a*S1+a*R*mu[c]*S2;
      dA[c]=-e[c]*S2*R+a*(S2*R*R*k-t2*R); dA2[c]=-a*S2*R; dB[c]=-e[c]*S1+e[c]*S2*R*mu[c]-a*t1-a*S2*(R*R*k*mu[c]-R*mud[c])+a*t2*R*mu[c]; }
    int nb=l?nblk(H,H):1; T*g=S.g.get(nb*ys),*g2=S.g2.get(2*nb*ys); T*du=S.dU.get(16*C*C); memset(du,0,sizeof(T)*(l?16*C*C:9*C));
    for(int i=0;i<n;i+=nb){ int m=std::min(nb,n-i); T*yb,*yd; if(l==0){ yb=S.y0.get(ys); yd=g2+ys; l1fwd(x+(long)i*784,N.w(0),28,28,yb); l1fwd(x+(long)i*784,D.w(0),28,28,yd);} else { yb=A.y[l].p+i*ys; yd=S.yd[l].p+i*ys; }
      dense<T>(yb,yd,m,H,H,dA,dA2,dB,P2+i*ps,A.idx[l].p+i*ps,g2);
      if(l==0) l1bwd(x+(long)i*784,g2,28,28,du);
      else { dense<T>(yb,nullptr,m,H,H,cA,nullptr,cB,P+i*ps,A.idx[l].p+i*ps,g); cbwd<T>(S.od[l-1].p+i*ys,g,D.Ut[l].p,A.out[l-1].p+i*ys,g2,N.Ut[l].p,m,H,H,du,dn+i*ys,S.ws); } }
    T*gl=hv+(l?576+(l-1)*36864:0); if(l) wxf2_adj(du,gl); else memcpy(gl,du,sizeof(T)*576); std::swap(dd,dn); }
}
// mean over tasks of the MAML outer gradient; returns nothing, losses per task in loss[]
template<class T> void maml(const T*theta,long np,const T*sx,const int*sy,int ns,const T*qx,const int*qy,int nq,int way,int tasks,int steps,T lr,int second,T*grad,T*loss,int nth){
  std::vector<std::vector<T>> acc(nth); Net<T> N0; N0.set(theta);
  #pragma omp parallel num_threads(nth)
  { int t=omp_get_thread_num(); auto&ac=acc[t]; ac.assign(np,T(0)); std::vector<Net<T>> Ns(steps+1); Net<T> D; std::vector<Acts<T>> As(steps); Acts<T> Q; Scr<T> S; std::vector<std::vector<T>> th(steps+1,std::vector<T>(np)); std::vector<T> g(np),hv(np);
    #pragma omp for schedule(static)
    for(int k=0;k<tasks;k++){ const T*x=sx+(long)k*ns*784; const int*l=sy+k*ns;
      for(int s=0;s<steps;s++){ const T*cur=s?th[s].data():theta; fwdbwd<T>(s?Ns[s]:N0,x,l,ns,way,As[s],g.data(),S); for(long i=0;i<np;i++) th[s+1][i]=cur[i]-lr*g[i]; Ns[s+1].set(th[s+1].data()); }
      loss[k]=fwdbwd<T>(steps?Ns[steps]:N0,qx+(long)k*nq*784,qy+k*nq,nq,way,Q,g.data(),S);
      if(second) for(int s=steps-1;s>=0;s--){ D.set(g.data()); hvp<T>(s?Ns[s]:N0,D,x,ns,way,As[s],hv.data(),S); for(long i=0;i<np;i++) g[i]-=lr*hv[i]; }
      for(long i=0;i<np;i++) ac[i]+=g[i]; } }
  for(long i=0;i<np;i++){ T z=0; for(int t=0;t<nth;t++) z+=acc[t].empty()?T(0):acc[t][i]; grad[i]=z/tasks; }
}
